"""Training self-evaluation: examples from the model's own answers, and what is made of them."""
