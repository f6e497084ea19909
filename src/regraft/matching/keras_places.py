"""Variables that Keras' files hold without names, told by the place where Keras finds them.

Such a file has a layer's variables by number (`layers/dense/vars/0`), and names only what is known
of the layer's class. Where another side, a live model mostly, has its variables at just these
places in just these shapes, it is what Keras itself would load the file into, and says what each
is.
"""

from __future__ import annotations

from regraft import keras_layout
from regraft.errors import CorruptFile
from regraft.matching.views import with_tensors
from regraft.tensors import Catalogue


def told(nameless: Catalogue, other: Catalogue) -> Catalogue:
    """The catalogue with the roles and layers' classes that `other` tells."""
    if all(info.role for info in nameless.values()):
        return nameless
    here = _places(nameless)
    there = _places(other) if here else {}  # a live model has to be asked for them
    if not here or here.keys() != there.keys():
        return nameless
    same = {here[place]: other.get(name) for place, name in there.items()}
    named = {same[name] for name, info in nameless.items() if info.role and name in same}
    infos = list(nameless.values())
    for i, info in enumerate(infos):
        twin = same.get(info.name)
        if twin is not None and twin.shape != info.shape:
            return nameless
        if twin is not None and not info.role:
            owner = info.name.rpartition("/")[0]
            infos[i] = info._replace(
                role=twin.role,
                module=twin.module,
                owner=owner if twin.role else "",
                # A variable that two layers hold was written twice, and is wanted once.
                kind="constant" if twin in named else info.kind,
            )
    return with_tensors(nameless, infos, nameless.flow)


def _places(catalogue: Catalogue) -> dict[str, str]:
    """Tensors by their places; none where the layout is not told, or cannot be read."""
    try:
        layout = keras_layout.decode(catalogue.metadata.get(keras_layout.KEY, "{}"), "")
    except CorruptFile:
        return {}
    return {at: what for at, what in keras_layout.places(layout) if isinstance(what, str)}
