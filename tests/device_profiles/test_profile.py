from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.devices import open_device
from device_profiles.errors import DeviceError, ProfileError
from device_profiles.profile import CATALOG, DeviceProfile, catalog, load_profile, write_profile

HOST = load_profile("host")
HOST_TOML = (CATALOG / "host.toml").read_text()


def test_every_profile_of_the_catalog_loads_under_its_own_name() -> None:
    assert "host" in catalog()
    for name in catalog():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.provenance.strip()


def test_host_profile_is_what_the_rest_counts_on() -> None:
    assert (HOST.kind, HOST.runtime, HOST.format, HOST.precision) == ("host", "onnxruntime", "onnx", "float32")
    assert (HOST.threads, HOST.channel_step) == (1, 8)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(ProfileError, match=r"'hosst'; did you mean host\?"):
        load_profile("hosst")


def test_an_unknown_name_says_what_exists() -> None:
    with pytest.raises(ProfileError, match=r"no device profile is called 'nokia'; the catalog has: .*host"):
        open_device("nokia")


def test_a_profile_error_is_a_device_error() -> None:
    assert issubclass(ProfileError, DeviceError)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my phone.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("threads = 1", "threads = 0", r"threads = 0 must be from 1 to 256"),
        ("threads = 1", "threads = true", r"threads = True must be a whole number"),
        ("threads = 1", 'threads = "1"', r"threads = '1' must be a whole number"),
        ("threads = 1", "treads = 1", r"unknown key 'treads'; did you mean 'threads'\?"),
        ("threads = 1", "threads = 1\nzzz = 1", r"unknown key 'zzz'; the keys are schema, name"),
        ("threads = 1", "", r"the key 'threads' is missing"),
        ("schema = 1", "", r"the key 'schema' is missing"),
        ("schema = 1", "schema = 2", r"schema = 2 must be 1; another version"),
        ("schema = 1", "schema = true", r"schema = True must be 1"),
        ('kind = "host"', 'kind = "phone"', r"kind = 'phone' must be 'host'"),
        ('kind = "host"', "kind = ['host']", r"kind = \['host'\] must be 'host'"),
        ('format = "onnx"', 'format = "tflite"', r"format = 'tflite' does not fit runtime = 'onnxruntime'"),
        ('name = "host"', 'name = "../host"', r"name = '../host' must be 1 to 64 of the characters"),
        ('title = "this machine"', 'title = " "', r"title = ' ' must not be empty"),
        ("channel_step = 8", "channel_step = 8.0", r"channel_step = 8.0 must be a whole number"),
        ("channel_step = 8", "channel_step = ", r"is not valid TOML"),
    ],
)
def test_a_file_that_breaks_the_schema_is_named_with_the_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in HOST_TOML
    path = write(tmp_path, HOST_TOML.replace(old, new, 1))
    with pytest.raises(ProfileError, match=said) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="not valid TOML"):
        load_profile(str(path))
    with pytest.raises(ProfileError, match="cannot be read: No such file"):
        load_profile(tmp_path / "none.toml")


def test_an_unsound_profile_cannot_be_made_in_code_either() -> None:
    with pytest.raises(ProfileError, match="cores = 0"):
        replace(HOST, cores=0)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1).filter(str.strip)


@given(
    title=texts,
    provenance=texts,
    soc=st.none() | texts,
    cores=st.none() | st.integers(1, 4096),
    threads=st.integers(1, 256),
    runtime=st.sampled_from([("onnxruntime", "onnx"), ("litert", "tflite")]),
)
def test_a_written_profile_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    title: str,
    provenance: str,
    soc: str | None,
    cores: int | None,
    threads: int,
    runtime: tuple[str, str],
) -> None:
    profile = DeviceProfile(
        name="my-phone.2",
        title=title,
        kind="host",
        runtime=runtime[0],
        format=runtime[1],
        precision="int8",
        threads=threads,
        channel_step=16,
        provenance=provenance,
        soc=soc,
        cores=cores,
    )
    path = tmp_path_factory.mktemp("profile") / "mine.toml"
    write_profile(profile, path)
    assert load_profile(path) == profile
    assert [one.name for one in path.parent.iterdir()] == ["mine.toml"]


def test_a_profile_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be written: No such file"):
        write_profile(HOST, tmp_path / "no folder" / "mine.toml")
    (tmp_path / "taken.toml").mkdir()
    with pytest.raises(ProfileError, match="cannot be written"):
        write_profile(HOST, tmp_path / "taken.toml")
    assert [one.name for one in tmp_path.iterdir()] == ["taken.toml"]
