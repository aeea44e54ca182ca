"""The runtime: tensors, blobs, workspaces, schemas, operators, nets, plans, threads. It knows no operator."""
