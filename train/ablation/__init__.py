"""The paper's ablations, and the control that it lacks: what is trained, how it is compared, tables and pictures."""
