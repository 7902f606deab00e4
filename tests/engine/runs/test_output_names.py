"""What a network of somebody else's is called within the name of a folder."""

import pytest

from engine.runs.output import as_file_name


@pytest.mark.parametrize(
    ("arch", "called"),
    [
        ("resnet18", "resnet18"),
        ("timm:resnet18.a1_in1k", "timm-resnet18.a1_in1k"),
        ("/home/me/nets.py:small", "home-me-nets.py-small"),
        ("../nets.py:small", "..-nets.py-small"),
    ],
)
def test_a_network_s_name_leads_nowhere_else(arch, called):
    assert as_file_name(arch) == called and "/" not in called
