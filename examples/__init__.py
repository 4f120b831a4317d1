"""Networks and data of one's own, as a search space names them: examples.unusual:network, examples.parity:load."""
