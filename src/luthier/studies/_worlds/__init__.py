"""Small worlds that studies share: invented data, and tiny models that were trained on them once and are kept."""
