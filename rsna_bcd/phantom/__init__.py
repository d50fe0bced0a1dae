"""The phantom: breasts, lesions and machines from which a synthetic competition is made. numpy."""
