"""A page to play with a model: what its tabs compute, and the page itself.

What is computed is apart from the page, and needs no gradio: `exhibit` (the model), `imaging`,
`filming`, `talking`, `inspecting`, and `views`, which makes HTML of it. `layout` is the page, and
`site` serves it.
"""
