"""Object stores (S3 through boto3) and the byte formats kept in them.

Modules: `objects` (the store), `envelope` (sealed artifacts on their way across a border), `shards` (Parquet text
shards and memory-mappable token shards). boto3 is imported when a store is first called, nowhere else.
"""
