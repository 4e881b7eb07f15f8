"""Training of self-evaluation: from sampled answers to a checkpoint that can judge its own partial responses.

Nothing here is loaded by the proxy. torch and transformers are imported by the modules that need them, which only
`preamble selfeval` does.
"""
