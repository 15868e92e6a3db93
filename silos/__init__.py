"""A hospital: its data, its training, its gate, its ledger."""
