"""Published checkpoints are read, and nothing that is in them is run."""

import argparse
import builtins
import io
import os
import pathlib
import pickle
import subprocess
import sys
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict
from datetime import datetime

import numpy
import pandas
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness.checkpoint import read_checkpoint
from harness.config import ConfigError
from harness.unpickle import Stub, Unpickler

FORMATS = {"torch zip": {}, "torch legacy": {"_use_new_zipfile_serialization": False}}


class Call:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args, state=None):
        self.made = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.made

    def __call__(self):
        """So that a pickle may call what this makes."""


@pytest.fixture(params=FORMATS)
def form(request):
    return request.param


@pytest.fixture
def write(tmp_path, form):
    """Saves a value in one of torch's formats."""

    def save(value, **options):
        torch.save(value, tmp_path / "file.pt", **FORMATS[form], **options)
        return tmp_path / "file.pt"

    return save


def state():
    random = torch.Generator().manual_seed(0)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    floats = {f"module.{k}".replace("torch.", ""): torch.randn(3, 4, generator=random).to(k)
              for k in kinds}  # fmt: skip
    whole = {f"module.{k}".replace("torch.", ""): torch.arange(5).to(k)
             for k in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)}  # fmt: skip
    base = torch.randn(6, 8, generator=random)
    return OrderedDict(
        **floats,
        **whole,
        **{
            "module.bool": torch.tensor([True, False]),
            "module.scalar": torch.tensor(2.5),
            "module.empty": torch.empty(0, 3),
            "module.base": base,
            "module.row": base[2],
            "module.column": base[:, 3],
            "module.turned": base.t(),
            "module.spread": torch.ones(1).expand(4, 2),
            "module.complex": torch.randn(2, 2, dtype=torch.complex64, generator=random),
            "module.parameter": nn.Parameter(torch.randn(2, generator=random)),
        },
    )


def arguments():
    """What AVION's and LaViLa's files carry, and more."""
    actions = pandas.DataFrame({"verb": [1, 2], "noun": ["pan", "lid"], "share": [0.5, 0.25]})
    return argparse.Namespace(
        model="CLIP_VITB16",
        clip_length=16,
        lr=numpy.float64(3e-3),
        seed=numpy.int64(7),
        actions=actions,
        grouped=actions.assign(kind=pandas.Categorical(["a", "b"])).set_index("verb"),
        mapping_act2v={0: 1, 1: 2},
        array=numpy.arange(4).reshape(2, 2),
        objects=numpy.array(["a", None], dtype=object),
        folder=pathlib.Path("somewhere"),
        started=datetime(2022, 1, 2),
        counts=Counter("aab"),
        groups=defaultdict(list, {1: [2]}),
        names={"a", "b"},
        raw=b"\xff\x00",
        steps=range(3),
        part=slice(1, 2),
        device=torch.device("cpu"),
        inner=types.SimpleNamespace(rank=0),
    )


def agree(found, expected):
    assert list(found) == [name.removeprefix("module.") for name in expected]
    for name, value in expected.items():
        one = found[name.removeprefix("module.")]
        assert type(one) is torch.Tensor
        assert one.dtype == value.dtype
        assert one.stride() == value.stride()
        assert torch.equal(one, value), name


@pytest.mark.parametrize("wrapping", ["model_state", "state_dict", "model", None])
def test_every_wrapping_is_taken_off_and_every_value_is_the_saved_one(write, form, wrapping):
    expected = state()
    found = read_checkpoint(write({wrapping: expected} if wrapping else expected))
    agree(found.tensors, expected)
    assert found.format == form


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_of_pickles_is_read(write, protocol):
    value = {"epoch": 3, "state_dict": state(), "args": arguments()}
    found = read_checkpoint(write(value, pickle_protocol=protocol))
    agree(found.tensors, value["state_dict"])
    assert found.facts["args.model"] == "CLIP_VITB16"
    assert found.facts["args.lr"] == 3e-3
    assert found.facts["args.seed"] == 7


def test_views_of_one_tensor_still_share_its_memory(write):
    found = read_checkpoint(write(state())).tensors
    found["base"][2, 3] = 7.0
    assert found["row"][3] == found["column"][2] == found["turned"][3, 2] == 7.0


def test_simple_values_are_kept_and_all_others_are_left_out(write):
    optimizer = {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    value = {"epoch": 97, "best_acc1": numpy.float64(49.5), "cfg": "A: 1", "optimizer": optimizer,
             "model_state": {"a": torch.ones(2)}, "args": arguments()}  # fmt: skip
    facts = read_checkpoint(write(value)).facts
    assert facts == {
        "epoch": 97,
        "best_acc1": 49.5,
        "cfg": "A: 1",
        "args.model": "CLIP_VITB16",
        "args.clip_length": 16,
        "args.lr": 3e-3,
        "args.seed": 7,
    }
    value["args"] = {"model": "TSF_B", "other": [1]}
    assert read_checkpoint(write(value)).facts["args.model"] == "TSF_B"


def test_no_package_that_a_file_names_is_imported(write):
    file = write({"state_dict": state(), "args": arguments()})
    code = (
        "import sys, pathlib; from harness.checkpoint import read_checkpoint;"
        f"print(len(read_checkpoint(pathlib.Path({str(file)!r})).tensors));"
        "print(sorted({'pandas', 'pyarrow', 'argparse'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert done[0] == str(len(state()))
    assert "pandas" not in done[1]
    assert "pyarrow" not in done[1]


def test_a_data_frame_becomes_stubs():
    read = Unpickler(io.BytesIO(pickle.dumps(arguments()))).load()
    assert read.origin == "argparse.Namespace"
    for name in ("actions", "grouped", "array", "folder", "counts", "groups", "started", "inner"):
        assert isinstance(read.state[name], Stub), name
    assert read.state["actions"].origin.startswith("pandas.")


class Filled(list):
    """A list with attributes; `numpy` is where it says it comes from."""


class Keyed(dict):
    """The same for mappings."""


class Slotted:
    __slots__ = ("one",)

    def __init__(self):
        self.one = 1


class Named:
    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (1, 2), {"three": 3}


def test_stubs_take_whatever_a_pickle_gives_an_object(monkeypatch, write):
    for cls in (Filled, Keyed, Slotted, Named):
        monkeypatch.setattr(cls, "__module__", "numpy")
        monkeypatch.setattr(numpy, cls.__name__, cls, raising=False)
    filled, keyed = Filled([1, 2]), Keyed(a=1)
    filled.more, keyed.more = 3, 4
    for protocol in (2, 4, 5):
        things = [filled, keyed, Slotted(), Filled([1])]
        things += [Named()] if protocol > 2 else []  # before, arguments by name need `partial`
        value = {"model": {"a": torch.ones(2)}, "things": things}
        assert read_checkpoint(write(value, pickle_protocol=protocol)).facts == {}
        read = Unpickler(io.BytesIO(pickle.dumps(things, protocol=protocol))).load()
        assert all(isinstance(thing, Stub) for thing in read)
        assert read[2].state == (None, {"one": 1})


def attacks(goal):
    """What a hostile file might ask for: (the global in the message, the object)."""
    text = f"__import__('pathlib').Path({str(goal)!r}).write_text('x')"
    shell = f"echo x > {goal}"
    path = pathlib.Path(goal)
    call = Call(os.system, shell)
    return {
        "os.system": (f"{os.name}.system", call),
        "open": ("io.open", Call(open, str(goal), "w")),
        "exec": ("builtins.exec", Call(exec, text)),
        "eval": ("builtins.eval", Call(eval, text)),
        "getattr": ("builtins.getattr", Call(Call(getattr, path, "write_text"), "x")),
        "bound method": ("builtins.getattr", Call(path.write_text, "x")),
        "subprocess": ("subprocess.Popen", Call(subprocess.Popen, ["touch", str(goal)])),
        "import": ("builtins.__import__", Call(builtins.__import__, "antigravity")),
        "torch.load": ("torch.serialization.load", Call(torch.load, str(goal))),
        "hub": ("torch.hub.load", Call(torch.hub.load, "a/b", "c")),
        "module": ("torch.nn.modules.linear.Linear", nn.Linear(2, 2)),
        "in args": (f"{os.name}.system", argparse.Namespace(model="x", hidden=[{"deep": call}])),
        "as state": (f"{os.name}.system", Call(argparse.Namespace, state={"a": call})),
        "as key": (f"{os.name}.system", {1: Call(dict, [("a", call)])}),
    }


@pytest.mark.parametrize("place", ["value", "tensor"])
@pytest.mark.parametrize("attack", attacks("x"))
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code for container:UserWarning")
def test_an_attack_is_refused_and_named_and_nothing_of_it_happens(write, tmp_path, attack, place):
    goal = tmp_path / "pwned"
    name, thing = attacks(goal)[attack]
    value = {"epoch": 1, "state_dict": {"a": torch.ones(2)}}
    (value if place == "value" else value["state_dict"])["args"] = thing
    file = write(value)
    with pytest.raises(ConfigError) as error:
        read_checkpoint(file)
    assert not goal.exists()
    assert str(file) in str(error.value)
    assert f"asks for {name}" in str(error.value)
    assert "nothing of it was run" in str(error.value)
    assert "save its state dict alone" in str(error.value)


def test_the_attacks_would_work_on_a_reader_that_does_not_refuse(tmp_path):
    for attack in ("os.system", "exec", "eval", "bound method", "getattr", "in args"):
        goal = tmp_path / attack.replace(" ", "_")
        pickle.loads(pickle.dumps(attacks(goal)[attack][1]))
        assert goal.exists(), attack


@pytest.mark.parametrize("function", [numpy.load, numpy.save, pandas.read_pickle, numpy.fromfile])
def test_functions_of_harmless_packages_are_not_called_either(write, tmp_path, function):
    goal = tmp_path / "pwned.npy"
    thing = Call(function, str(goal), 1)
    found = read_checkpoint(write({"args": thing, "model": {"a": torch.ones(2)}}))
    assert list(found.tensors) == ["a"]
    assert not goal.exists()


def test_a_pickle_cannot_change_what_reads_the_next_one(write):
    """BUILD sets attributes of whatever it is given, also of functions and classes."""
    with pytest.raises(ConfigError, match="damaged"):
        read_checkpoint(write({"model": {"a": Call(OrderedDict, state=(None, {"x": 1}))}, "b": [
            Call(torch._utils._rebuild_parameter, torch._utils._rebuild_tensor_v2,
                 state=(None, {"__defaults__": 1}))]}))  # fmt: skip
    found = read_checkpoint(write({"model": {"a": nn.Parameter(torch.ones(2))}}))
    assert torch.equal(found.tensors["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"c__builtin__\nopen\n(S'x'\nS'w'\ntR.", "builtins.open"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x02os\x93\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.", "torch.os.system"),
        (b"\x80\x04\x8c\x0ctorch._utils\x8c\x0asys.exit()\x93.", "torch._utils.sys.exit()"),
    ],
)
def test_a_bare_pickle_is_refused_too(tmp_path, text, name):
    (tmp_path / "file.pkl").write_bytes(text)
    with pytest.raises(ConfigError, match="asks for") as error:
        read_checkpoint(tmp_path / "file.pkl")
    assert f"asks for {name}" in str(error.value)


def test_a_file_cannot_reach_memory_outside_its_storages(tmp_path):
    torch.save({"model": {"a": torch.arange(4.0)}}, tmp_path / "file.pt")
    with zipfile.ZipFile(tmp_path / "file.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    view = b"QK\x00K\x04\x85"  # from the first value on, four values
    assert view in parts[name]
    for other in (b"QK\x01K\x04\x85", b"QK\x00K\x05\x85", b"QJ\xff\xff\xff\xffK\x01\x85"):
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
            for part, content in parts.items():
                archive.writestr(part, content.replace(view, other) if part == name else content)
        with pytest.raises(ConfigError, match="lies outside its storage"):
            read_checkpoint(tmp_path / "bad.pt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_named(write, share):
    file = write({"model_state": {"a": torch.randn(1000), "b": torch.randn(10)}})
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ConfigError, match=r"file.pt: .*(cut short|is empty)"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG not a checkpoint", "not a checkpoint"),
        (b"hello", "not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (pickle.dumps({"a": 1}), "is a pickle, but not a checkpoint of torch"),
        (b"\x10\0\0\0\0\0\0\0{bad json bad js", "damaged"),
    ],
)
def test_a_file_that_is_no_checkpoint_says_what_it_is(tmp_path, content, message):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_checkpoint(tmp_path / "file.pt")
    assert str(error.value).startswith(str(tmp_path / "file.pt"))


def test_what_is_not_a_state_dict_is_refused(write, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no tensors.*it has epoch, args"):
        read_checkpoint(write({"epoch": 1, "args": arguments()}))
    with pytest.raises(ConfigError, match="holds a tensor"):
        read_checkpoint(write(torch.ones(2)))
    with pytest.raises(ConfigError, match="holds a list"):
        read_checkpoint(write([torch.ones(2)]))
    with pytest.raises(ConfigError, match=r"with and without 'module.'"):
        read_checkpoint(write({"a": torch.ones(2), "module.a": torch.ones(2)}))
    with pytest.raises(ConfigError, match=r"_rebuild_sparse_tensor \(of dense"):
        read_checkpoint(write({"a": torch.eye(2).to_sparse()}))
    with pytest.raises(ConfigError, match=r"no such file. Did you mean .*file.pt\?"):
        read_checkpoint(tmp_path / "fle.pt")


def test_torchscript_and_other_archives_are_not_opened(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    with pytest.raises(ConfigError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("text.txt", "x")
    with pytest.raises(ConfigError, match="not one of torch's"):
        read_checkpoint(tmp_path / "other.pt")
    subprocess.run(["tar", "cf", "old.pt", "other.pt"], cwd=tmp_path, check=True)
    with pytest.raises(ConfigError, match="tar archive"):
        read_checkpoint(tmp_path / "old.pt")


def test_safetensors_are_read_with_their_metadata(tmp_path):
    expected = {"module.a": torch.randn(2, 3), "module.b": torch.ones(2, dtype=torch.bfloat16)}
    save_file(expected, tmp_path / "file.bin", {"epoch": "3"})
    found = read_checkpoint(tmp_path / "file.bin")
    agree(dict(sorted(found.tensors.items())), expected)
    assert found.facts == {"epoch": "3"}
    assert found.format == "safetensors"


def test_a_checkpoint_is_read_under_another_default_device(write):
    file = write({"model": {"a": torch.ones(2), "b": torch.ones(0)}})
    with torch.device("meta"):
        found = read_checkpoint(file).tensors
    assert {value.device.type for value in found.values()} == {"cpu"}


def test_a_damaged_file_is_an_error_of_ours_or_harmless(write):
    file = write({"epoch": 1, "state_dict": state(), "args": arguments()})
    whole, random = file.read_bytes(), torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for place in torch.randint(min(len(whole), 9000), (4,), generator=random).tolist():
            content[place] = int(torch.randint(128, (), generator=random))
        file.write_bytes(content)
        try:
            read_checkpoint(file)
        except ConfigError:
            refused += 1
    assert refused > 100


def test_a_pickle_cannot_ask_for_all_the_memory_there_is(tmp_path):
    (tmp_path / "file.pt").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")  # the None at place 2^31 - 1
    with pytest.raises(ConfigError, match="object 2147483647 after 2 steps"):
        read_checkpoint(tmp_path / "file.pt")
