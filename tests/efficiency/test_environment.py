import json
import platform

import timm
import torch

from efficient_vits.efficiency import environment


def test_versions_and_machine_are_named() -> None:
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["timm"] == timm.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert all(value != "" for value in facts.values())
    assert ("device" in facts) == ("driver" in facts) == torch.cuda.is_available()
    json.dumps(facts)
