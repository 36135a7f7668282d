"""What a state is: named parts, one adapter for each kind, flattened to tensors and tagged scalars."""
