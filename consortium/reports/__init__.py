"""Contribution reports: one canonical record per partner and period, which anybody can verify offline.

Modules: `model` (what a report says), `figures` (from leaves to figures, pure), `build`, `verify`, `text` (JSON in and
out). Writer and verifier compute figures with the same functions, from the leaves that the report carries.

Beside them what people read at home: of a dataset (`dataset`, `dataset_page`), of a document (`history`, `story`).
"""
