"""The border gateway: the only process of a site that calls outside, and the only way in for its legs.

Modules: `core` (what all parts share), `legs` (the API of legs), `border` (artifacts out and in), `evidence` (what
peers signed), `upstream` (the agent's calls to the server), `tracking` (MLflow), `traffic` (counting what crosses in
calls), `app` (the process).
"""
