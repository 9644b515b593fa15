"""LLaVA: pictures as parts of turns, a projector between two models, two stages that freeze what they should."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DroppedRow
from luthier.engine.batches import collate, join
from luthier.engine.forward import Forward
from luthier.engine.models import add_tuned, load_base
from luthier.engine.rendering import renderer
from luthier.engine.steps.fit import Fit
from luthier.pipelines.steps.join_models import JoinModels
from luthier.pipelines.steps.whole_model import WholeModel
from luthier.techniques.data.visual_instructions import VisualInstructions
from luthier.techniques.models.llava import Llava
from tests.techniques.models.conftest import COLOURS, PLACES


def shown(name, path, *pairs) -> Example:
    """A conversation whose first turn shows a picture."""
    turns = []
    for n, (question, answer) in enumerate(pairs):
        picture = () if n or path is None else (Part(str(path), type="image", name="content"),)
        turns += [Turn("user", (*picture, Part(question, name="content"))),
                  Turn("assistant", (Part(answer, name="content"),), target=True)]
    return Example(name, tuple(turns), task="chat")


@pytest.fixture
def rows(pictures):
    return [shown(f"r{i}", pictures[c], ("Which colour?", f"It is {c}."), ("Is it a picture?", "Yes.")) for i, c in
            enumerate(COLOURS)]


def batch_of(model, *examples):
    render = renderer(model, 128)
    return collate([{"input": render.tokens(e)} for e in examples], [e.id for e in examples], 0)["input"]


def said(model, example) -> torch.Tensor:
    """Scores at the learned positions."""
    with torch.no_grad():
        return Forward({"policy": model})("policy", batch_of(model, example)).logits()


def stage(base, rows, train, ctx_of, name, rate):
    """Two steps of one of the stages."""
    examples = write_examples(ctx_of(f"{name}-rows").folder, {"train": rows})
    inputs = {"base": base, "examples": examples}
    fit = Fit(tasks=({"data": "examples.train", "objective": "supervised"},), method={"use": "parts", "train": train},
              length={"steps": 3}, learning_rate=rate, batch_rows=4, max_tokens_per_example=128, schedule="constant")
    ctx = ctx_of(name, inputs)
    made = fit.run(inputs, ctx)
    assert [r.name for r in fit.receipts(inputs, made, ctx) if r.verdict == "differs"] == []
    return made


@pytest.fixture
def stages(joined, rows, make_ctx):
    """The joined model, what stage 1 left as a model, and what stage 2 learned on it."""
    aligned = stage(joined, [shown(r.id, r.turns[0].parts[0].value, ("What is it?", "A colour.")) for r in rows],
                    ["projector"], make_ctx, "aligned", 2e-2)
    ctx = make_ctx("base")
    whole = WholeModel().run({"base": joined, "tuned": aligned}, ctx)
    assert [r.verdict for r in WholeModel().receipts({"base": joined, "tuned": aligned}, whole, ctx)] == ["agrees"]
    return joined, whole, stage(whole, rows, ["projector", "language"], make_ctx, "tuned", 1e-2)


# --- the oracle's clauses --------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=137, clause=1, against="comparison of every tensor")
def test_stage_one_moves_the_projector_alone_and_stage_two_leaves_vision(stages):
    joined, whole, tuned = stages
    before, middle = (dict(load_base(a).module.state_dict()) for a in (joined, whole))
    after = dict(add_tuned(load_base(whole), tuned).module.state_dict())
    moved_1 = {n for n in before if not torch.equal(before[n], middle[n])}
    assert moved_1 == {f"model.multi_modal_projector.linear_1.{w}" for w in ("weight", "bias")}
    moved_2 = {n for n in middle if not torch.equal(middle[n], after[n])}
    assert moved_1 < moved_2 and not any("vision_tower" in n for n in moved_2)
    assert {n.split(".layers.")[0].split(".")[1] for n in moved_2 if "model." in n} == {"multi_modal_projector",
                                                                                        "language_model"}
    assert torch.equal(after["model.multi_modal_projector.linear_2.weight"], torch.eye(64)), "a linear projector is one map"


@pytest.mark.oracle(seed=137, clause=2, against="answers joined by hand")
def test_only_what_the_assistant_says_is_learned(joined, rows):
    model = load_base(joined)
    tokens = renderer(model, 128).tokens(rows[0])
    learned = [i for i, t in zip(tokens.ids, tokens.targets, strict=True) if t]
    assert model.tokenizer.decode(learned) == " It is red.<eos> Yes.<eos>"
    rest = model.tokenizer.decode([i for i, t in zip(tokens.ids, tokens.targets, strict=True) if not t])
    assert rest == "<bos>User: " + "<image>" * PLACES + "\nWhich colour?\nAssistant:\n\nUser: Is it a picture?\nAssistant:"


@pytest.mark.oracle(seed=137, clause=2, against="brute force over scenes")
def test_answers_of_the_rule_writer_follow_from_the_boxes_and_are_what_is_learned(joined, pictures, make_ctx):
    rng, model = np.random.default_rng(5), load_base(joined)
    render = renderer(model, 4096)
    checked = 0
    for n in range(30):
        scene = scene_of(rng, n, pictures["red"])
        for row in VisualInstructions().apply(iter([scene]), make_ctx("writer")):
            if isinstance(row, Dropped):
                continue
            assert all(turn.target == (turn.role == "assistant") for turn in row.turns)  # said by the row, not by who renders
            tokens = render.tokens(row)
            learned = model.tokenizer.decode([i for i, t in zip(tokens.ids, tokens.targets, strict=True) if t])
            pairs = [(a.text, b.text) for a, b in zip(row.turns[::2], row.turns[1::2], strict=True)]
            assert learned == "".join(f" {answer}<eos>" for _, answer in pairs)
            for question, answer in pairs:
                checked += holds(question, answer, scene.meta["boxes"])
    assert checked > 100


@pytest.mark.oracle(seed=137, clause=3, against="transformers: the language model alone on zero vectors")
def test_a_projector_of_zeros_is_as_many_zero_vectors_in_the_text(joined, rows):
    model = load_base(joined)
    with torch.no_grad():
        for weight in model.module.model.multi_modal_projector.linear_1.parameters():
            weight.zero_()
    batch = batch_of(model, rows[0])
    embeds = model.module.model.language_model.embed_tokens(batch.ids)
    assert int((batch.ids == model.pictures.token_id).sum()) == PLACES
    embeds[batch.ids == model.pictures.token_id] = 0
    with torch.no_grad():
        states = model.module.model.language_model(inputs_embeds=embeds, attention_mask=batch.mask).last_hidden_state
        wanted = model.module.lm_head(states)[:, :-1][batch.targets[:, 1:]]
    assert torch.allclose(said(model, rows[0]), wanted, atol=1e-5)


@pytest.mark.oracle(seed=137, clause=3, against="the encoder's hidden states times W")
def test_what_is_projected_are_the_patches_of_the_layer_before_the_last(joined, vision, rows):
    from transformers import CLIPVisionModel

    model = load_base(joined)
    pixels = batch_of(model, rows[1]).arguments()["pixel_values"]
    with torch.no_grad():
        states = CLIPVisionModel.from_pretrained(vision.folder)(pixels, output_hidden_states=True).hidden_states
        w = model.module.model.multi_modal_projector.linear_1
        wanted = states[2][0, 1:] @ w.weight.T + w.bias
        seen = model.module.get_image_features(pixel_values=pixels, return_dict=True).pooler_output[0]
    assert len(states) == 4 and torch.allclose(seen, wanted, atol=1e-5)


@pytest.mark.oracle(seed=137, clause=4, against="another picture in the same words")
def test_another_picture_changes_what_the_tuned_model_says(stages, pictures, tmp_path):
    _, whole, tuned = stages
    model = add_tuned(load_base(whole), tuned)
    (tmp_path / "again.png").write_bytes(pictures["red"].read_bytes())
    asked = [shown(str(p), p, ("Which colour?", "It is red.")) for p in (pictures["red"], pictures["blue"],
                                                                         tmp_path / "again.png")]
    red, blue, again = (said(model, e) for e in asked)
    assert float((red - blue).abs().max()) > 1e-3 and torch.equal(red, again)



@pytest.mark.oracle(seed=137, clause=5, against="by hand")
def test_a_perfect_judge_gives_100_and_another_what_the_sums_say(make_ctx):
    from luthier.core.kinds import Metric, Prediction

    class Rates(Metric, name="rates-by-length"):
        """Ten for what equals the reference, else the number in the text."""

        def score(self, examples, predictions, ctx):
            return [{"id": e.id, "value": 10.0 if p.text == e.answer else float(p.text)}
                    for e, p in zip(examples, predictions, strict=True)]

    asked = [shown(n, None, ("Q?", a)) for n, a in (("a", "yes"), ("b", "no"))]
    metric = build("metric", {"use": "relative-score", "judge": "rates-by-length"})
    ctx = make_ctx("judge")
    right = metric.score(asked, [Prediction("a", text="yes"), Prediction("b", text="no")], ctx)
    assert metric.reduce(right) == 100 and [r["value"] for r in right] == [100, 100]
    mixed = metric.score(asked, [Prediction("a", text="yes"), Prediction("b", text="3")], ctx)
    assert metric.reduce(mixed) == pytest.approx(100 * 13 / 20) and mixed[1]["value"] == pytest.approx(30)
    assert metric.reduce(mixed) == pytest.approx(np.mean([r["value"] for r in mixed]))


# --- against transformers' own processor and generation ------------------------------------------------------------------

@pytest.mark.oracle(seed=137, clause=3, against="transformers' LlavaProcessor and generate")
def test_ids_pixels_and_answers_are_those_of_transformers(joined, pictures, engine):
    from transformers import LlavaProcessor

    from luthier.engine.pictures import opened

    model = load_base(joined)
    example = shown("one", pictures["green"], ("Which colour?", ""))
    example = Example("one", example.turns[:1], task="chat")
    render = renderer(model, 128)
    ids, seen = render.prompt(example), render.seen(example)
    processor = LlavaProcessor(model.pictures.processor, model.tokenizer, patch_size=8,
                               vision_feature_select_strategy="default",
                               num_additional_image_tokens=1)
    wanted = processor(images=opened(pictures["green"]), text="User: <image>\nWhich colour?\nAssistant:", return_tensors="pt")
    assert ids == wanted["input_ids"][0].tolist()
    assert torch.allclose(torch.as_tensor(np.asarray(seen["pixel_values"])), wanted["pixel_values"])
    made = engine.generate(model, [ids, ids[:4]], "greedy:max_new_tokens=6", seen=[seen, {}])
    ends = torch.as_tensor(sorted(model.stop_ids))
    theirs = model.module.generate(**wanted, max_new_tokens=6, do_sample=False, eos_token_id=ends, pad_token_id=0)
    text = model.tokenizer.decode(theirs[0, len(ids):], skip_special_tokens=True).strip()
    assert made[0].text == text and made[0].prompt_tokens == len(ids)


def test_a_batch_is_its_rows_whatever_is_cut_and_joined(joined, rows):
    model = load_base(joined)
    text = shown("text", None, ("What is a module?", "A file."))
    batch = batch_of(model, rows[0], text, rows[2])
    assert batch.pieces["pixel_values"][1] is None and not batch.only_tokens and batch.narrow([1]).only_tokens
    run = Forward({"policy": model})
    with torch.no_grad():
        whole = run("policy", batch).row_log_probabilities()
        alone = torch.cat([run("policy", batch.narrow([i])).row_log_probabilities() for i in range(3)])
        together = run("policy", join(batch.narrow([2]), batch.narrow([1]))).row_log_probabilities()
    assert torch.allclose(whole, alone, atol=1e-4) and torch.allclose(together, whole[[2, 1]], atol=1e-4)


# --- bad input -----------------------------------------------------------------------------------------------------------

def test_marks_that_are_no_pictures_are_refused_by_name(joined, pictures):
    render = renderer(load_base(joined), 128)
    for example in (shown("odd", pictures["red"], ("<image> Which?", "Red.")), shown("none", None, ("<image> Which?", "Red."))):
        with pytest.raises(UserError, match=f"Row {example.id} has [01] pictures, but [12] marks <image>"):
            render.tokens(example)


def test_a_row_that_pictures_make_too_long_names_their_tokens(joined, rows):
    render = replace(renderer(load_base(joined), 128), max_tokens=20)
    with pytest.raises(DroppedRow) as caught:
        render.tokens(rows[0])
    assert f"1 x {PLACES} of them for pictures" in caught.value.dropped.detail


def test_a_model_without_eyes_drops_pictures_by_name(pico, rows):
    with pytest.raises(DroppedRow) as caught:
        renderer(load_base(pico), 128).tokens(rows[0])
    assert caught.value.dropped.reason == "pictures" and "reads none" in caught.value.dropped.detail


def test_what_can_not_be_joined_or_trained_is_said(joined, vision, pico, pico_encoder, make_ctx):
    with pytest.raises(UserError, match="feature_layer = -9, but the picture encoder has 3 layers: from -1 to -4"):
        Llava(feature_layer=-9).make(vision.folder, pico.folder, make_ctx("m").folder)
    with pytest.raises(UserError, match="holds no picture encoder"):
        JoinModels().run({"vision": pico, "language": pico}, make_ctx("j"))
    with pytest.raises(UserError, match="pico-encoder is an encoder; the language model is a decoder"):
        JoinModels().run({"vision": vision, "language": pico_encoder}, make_ctx("k"))
    with pytest.raises(UserError,
                       match=r"parts: there is no part 'projctor' of .* Did you mean 'projector'|parts: there is no"):
        build("method", "parts:train=[projctor]").prepare(load_base(joined), None)
    with pytest.raises(UserError, match="parts: llava: pico has no projector"):
        build("method", "parts").prepare(load_base(pico), None)
    body = Llava()
    below, rest = body.split(load_base(joined), 1)
    assert len(below) == 1 and len(rest) == 1
    with pytest.raises(UserError, match="there is no layer 7 to split at; legal: 0 to 2"):
        body.split(load_base(joined), 7)


def test_a_projector_of_another_width_is_refused(joined, vision, pico, rows, make_ctx):
    aligned = stage(joined, rows[:2], ["projector"], make_ctx, "aligned", 1e-2)
    other = make_ctx("other")
    wide = JoinModels(body="llava:projector=mlp2x_gelu").run({"vision": vision, "language": pico}, other)
    with pytest.raises(UserError, match="was trained on"):
        add_tuned(load_base(wide), aligned)


def test_two_maps_are_trained_with_gelu_between(vision, pico, make_ctx):
    made = JoinModels(body="llava:projector=mlp2x_gelu").run({"vision": vision, "language": pico}, make_ctx("two"))
    model = build("method", "parts").prepare(load_base(made), None)
    names = {n for n, p in model.module.named_parameters() if p.requires_grad}
    assert names == {f"model.multi_modal_projector.linear_{i}.{w}" for i in (1, 2) for w in ("weight", "bias")}
    assert type(model.module.model.multi_modal_projector.act).__name__.startswith("GELU")


# --- scenes for the brute force --------------------------------------------------------------------------------------------

def scene_of(rng, n, picture) -> Example:
    names = ["red circle", "blue square", "green bar"]
    boxes = []
    for _ in range(int(rng.integers(1, 5))):
        x, y = rng.uniform(0, 0.7, 2)
        boxes.append({"class": names[rng.integers(3)], "box": [float(x), float(y), float(x) + 0.25, float(y) + 0.25]})
    return Example(f"s{n}", (Turn("user", (Part(str(picture), type="image"),)),), task="scene",
                   meta={"captions": ["a scene"], "boxes": boxes})


def holds(question, answer, boxes) -> bool:
    """Whether the boxes say what the answer says, worked out anew from the words of the question; fails where they do not."""
    def centre(name):
        (box,) = [b["box"] for b in boxes if b["class"] == name]
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

    count = {b["class"]: sum(o["class"] == b["class"] for o in boxes) for b in boxes}
    yes = re.search(r"\byes\b", answer.lower()) is not None
    if found := re.match(r"How many of these are there: (.+)\?", question):
        assert answer.lower() == {1: "one.", 2: "two.", 3: "three.", 4: "four."}[count[found[1]]]
    elif found := re.match(r"Where is the (.+)\?", question):
        across, down = centre(found[1])
        assert ("left" in answer) == (across < 1 / 3) and ("right" in answer) == (across >= 2 / 3)
        assert ("top" in answer) == (down < 1 / 3) and ("bottom" in answer) == (down >= 2 / 3)
    elif found := re.match(r"Is the (.+) (left of|above) the (.+?)(, and why)?\?", question):
        axis = 0 if found[2] == "left of" else 1
        assert yes == (centre(found[1])[axis] < centre(found[3])[axis]), (question, answer, boxes)
    elif found := re.match(r"What kind of (.+) is it\?", question):
        assert [b["class"] for b in boxes if b["class"].endswith(found[1])] == [f"{answer[:-1].lower()} {found[1]}"]
    elif found := re.match(r"Are there more of (.+) than of (.+), and why\?", question):
        assert yes == (count[found[1]] > count[found[2]])
    else:
        assert all(answer.count(f"a {name} in the ") == n for name,
                   n in count.items()) and len(answer.split(" in the ")) - 1 == \
            len(boxes)
    return True


def test_a_scripted_teacher_writes_what_it_is_asked_for(make_ctx, pictures, tmp_path):
    lines = [{"id": "s0/reasoning", "text": "Question: Why?\nAnswer: So.\n\nQuestion: And?\nAnswer: No."},
             {"id": "s0/description", "text": "no lines"}]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    step = VisualInstructions(kinds=("reasoning", "description"), teacher=f"replay:{tmp_path / 'said.jsonl'}")
    scene = scene_of(np.random.default_rng(0), 0, pictures["red"])
    row, lost = list(step.apply(iter([scene]), make_ctx("teacher")))
    assert [t.text for t in row.turns] == ["Why?", "So.", "And?", "No."] and lost.reason == "unparsed"
    prompt = step.prompt("reasoning", scene)
    assert "a scene" in prompt and f"{scene.meta['boxes'][0]['class']}: [0." in prompt
    assert [p.type for p in row.turns[0].parts].count("image") == 1
