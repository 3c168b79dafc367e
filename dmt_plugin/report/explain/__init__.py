"""``dmt explain``: what there is to say about one transformation, as data, text, page and pictures."""
