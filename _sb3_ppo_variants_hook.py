"""
Start-up hook: tells the RL Zoo of this package's algorithms as soon as the Zoo is imported.

The Zoo has no plugin mechanism, so ``sb3_ppo_variants.pth`` imports this module when Python starts. It puts a finder on
``sys.meta_path`` that waits for three modules of the Zoo and runs ``sb3_ppo_variants.zoo`` right after each of them; a Python
that never imports the Zoo only pays for a set look-up per imported module. The finder leaves once its work is done.

Set the environment variable ``SB3_PPO_VARIANTS_NO_ZOO=1`` to turn the hook off (``sb3_ppo_variants.zoo.register()`` then
registers by hand).
"""

# This runs at every start of Python: import nothing here that the interpreter has not loaded anyway.
import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

OPT_OUT = "SB3_PPO_VARIANTS_NO_ZOO"


class ZooFinder:
    """
    Meta path finder that finds nothing itself: it asks the other finders for the Zoo's modules and has the registration run
    after the module's own code.
    """

    def __init__(self) -> None:
        self.waiting = {"rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager"}
        self.searching: set[tuple[int, str]] = set()

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname not in self.waiting:
            return None
        # Another finder may delegate as this one does, and so come back here
        key = (get_ident(), fullname)
        if key in self.searching:
            return None
        self.searching.add(key)
        try:
            for finder in list(sys.meta_path):
                find_spec = None if finder is self else getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find_spec(fullname, path, target) if find_spec is not None else None
                if spec is not None:
                    self.watch(spec)
                    return spec
        finally:
            self.searching.discard(key)
        return None

    def watch(self, spec: "ModuleSpec") -> None:
        """
        Have the registration run once the module of ``spec`` has executed.

        :param spec: what another finder found; only its loader's ``exec_module`` is wrapped, until it is called
        """
        loader = spec.loader
        execute = getattr(loader, "exec_module", None)
        attributes = getattr(loader, "__dict__", None)
        if execute is None or attributes is None:
            return

        def exec_module(module: "ModuleType") -> None:
            attributes.pop("exec_module", None)
            execute(module)
            self.loaded(module.__name__)

        attributes["exec_module"] = exec_module

    def loaded(self, name: str) -> None:
        """
        Register what belongs to a module of the Zoo. A failure is a warning: the Zoo must go on working without us.

        :param name: name of the module that has just executed
        """
        if name not in self.waiting:
            return
        self.waiting.discard(name)
        try:
            from sb3_ppo_variants import zoo

            zoo.register_module(name)
        except Exception as error:
            self.waiting.clear()
            import warnings

            warnings.warn(
                f"the algorithms of sb3_ppo_variants are not available in the RL Zoo: {type(error).__name__}: {error}",
                stacklevel=2,
            )
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


if os.environ.get(OPT_OUT, "0") in ("", "0"):
    sys.meta_path.insert(0, ZooFinder())
