"""Import time, in a process that has imported nothing."""


class Import:
    repeat = 10
    number = 1

    def timeraw_caffe2(self):
        return "import caffe2"

    def timeraw_workspace(self):
        return "from caffe2.python import workspace"

    def timeraw_python_api(self):
        return "from caffe2.python import workspace, core, brew, model_helper, cnn"

    def timeraw_numpy(self):
        """For comparison: numpy is part of all of the above."""
        return "import numpy"
