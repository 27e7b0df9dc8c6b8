"""What a run can observe of itself: its code, its machine, its streams, its inputs, and which values are secret."""
