"""The stores: `fltr` and `fltr_auth` in PostgreSQL, vectors in Milvus, raw uploads in a blob store.

Belongs here: connecting, SQL, gRPC, files. Does not: rules about money (credits) or the order of writes (pipeline).
"""
