"""Preparation: many image files become crops on disk, or arrays, without losing any of them.

`crop` turns one file into one crop, `writing` into one PNG; `engine` does that in many processes
(`sandbox`), here or on a cluster (`cluster`); `manifest` keeps the prepared folder: pictures,
journal, tables. No torch.
"""
