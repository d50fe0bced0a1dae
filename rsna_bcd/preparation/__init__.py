"""Preparation: many image files become crops on disk, or arrays, without losing any of them.

`crop` turns one file into crops; `engine` does that in many processes, here or on a `cluster`;
`folder` keeps the crops, their journal and their tables. No torch.
"""
