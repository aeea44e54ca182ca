"""Names under which a predictor's nets and blobs are stored."""
from caffe2.proto import predictor_consts_pb2

predictor_constants = predictor_consts_pb2.PredictorConsts()
