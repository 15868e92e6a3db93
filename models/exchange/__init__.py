"""The words both sides exchange: arrays, orders, manifests, and the statements that bind them.

`spec` names the arrays, `documents` says what is asked and what left, `statement` signs it,
`channel` chains and records it, `witness` lets hospitals vouch for each other's past, `wire` puts it
in a Flower message. `encoding` says how finely the numbers of an update are told, `model_file` takes a model's
digest straight from its file, `survey` has the words of a survey, `enrolment` is how two parties come to know
each other; `door` and `fleet` carry Flower's calls between them.
"""
