"""Reading batches from a database."""
from typing import Any


def db_input(model: Any, blobs_out: list, batch_size: int, db: str, db_type: str) -> Any:
    """Open a database in the init net and read a batch at every run of the net."""
    reader = model.param_init_net.CreateDB([], "dbreader_" + db, db=db, db_type=db_type)
    return model.net.TensorProtosDBInput(reader, blobs_out, batch_size=batch_size)
