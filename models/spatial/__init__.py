"""One network on several ranks: each has a strip of the patch and of every feature map, and the result is exact.

`rows.py` says which rank has which rows, `exchange.py` moves rows between ranks, `forms.py`, `norm.py` and `resize.py`
have the spatial form of each kind of layer, and `network.py` runs a Keras model with them.
"""
