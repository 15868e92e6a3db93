"""The words both sides exchange: arrays, orders, manifests, and the statements that bind them.

`spec` names the arrays, `documents` says what is asked and what left, `statement` signs it,
`channel` chains and records it, `witness` lets hospitals vouch for each other's past, `wire` puts it
in a Flower message.
"""
