"""The folders of an offline code competition: wheels, a notebook, and its rehearsal."""
