import pytest

from consilia.detection.detectors import DETECTORS
from consilia.detection.presets import PRESETS, preset_for
from consilia.errors import SpecError


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_found_by_its_data_set_and_says_why(name):
    preset = preset_for(name)
    assert preset.name == name
    assert preset.detector in DETECTORS
    assert preset.image_size % 32 == 0  # the pyramid pads to multiples of 32; anything else is wasted work
    assert preset.reason


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SpecError, match="expected one of bccd, ct_hemorrhage, phantom, got 'mri'"):
        preset_for("mri")
