"""`consortium demo`: the main job, end to end, on the embedded federation, through the same SDK as any user.

`steps` submits and waits, `collect` gathers what the server can show, `page` renders it, `corpora` finds the input.
"""
