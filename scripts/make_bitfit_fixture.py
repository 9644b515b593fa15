"""Record which weights the code of BitFit's authors trains: the oracle of `bitfit`.

    git clone https://github.com/benzakenelad/BitFit && python scripts/make_bitfit_fixture.py BitFit

writes tests/fixtures/bitfit.json: names of the trained weights of a small BERT, for all biases and for some. What the code
imports for its plots and its data is not needed for that and need not be installed.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

from _fixture import revision, write
from transformers import BertConfig, BertForSequenceClassification

CONFIG = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
# Our terms, the names of the components in the paper's code.
CASES = [((), ("all",)), (("query", "intermediate"), ("query", "intermediate")), (("output.LayerNorm",),
         ("output_layernorm", "attention_layernorm"))]


def record(terms: tuple[str, ...], components: tuple[str, ...]) -> dict:
    """Without the task's head, which is trained in any case."""
    from glue_evaluator import GLUEvaluator

    model = BertForSequenceClassification(BertConfig(**CONFIG))
    named = GLUEvaluator.convert_to_actual_components(components)
    GLUEvaluator._deactivate_relevant_gradients(SimpleNamespace(model=model), named)
    own = {n.removeprefix("bert."): p for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n}
    return {"terms": terms, "components": components, "names": sorted(own), "count": sum(p.numel() for p in own.values())}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    for name in ("matplotlib", "matplotlib.pyplot", "seaborn", "sklearn", "sklearn.metrics", "scipy.stats", "datasets",
                 "datasets.arrow_dataset", "transformers.optimization"):
        sys.modules[name] = MagicMock()
    records = [record(*case) for case in CASES]
    write("bitfit", __file__, {"benzakenelad/BitFit": revision(sys.argv[1])}, config=CONFIG, records=records)
    print([r["count"] for r in records])
