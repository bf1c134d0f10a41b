//! Files to weights, weights to logits.
