"""Training on real faces: `python -m train --data PATH`. Runs from a checkout, is not shipped."""
