"""What an offline code competition needs: wheels, a notebook, a rehearsal without a network."""
