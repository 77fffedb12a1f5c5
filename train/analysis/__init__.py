"""What a trained model does on a split: its outputs, metrics with intervals, correlations, pictures."""
