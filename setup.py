"""Packaging of sb3_ppo_variants."""

from pathlib import Path

from setuptools import Distribution, setup

ROOT = Path(__file__).parent
VERSION = (ROOT / "sb3_ppo_variants" / "version.txt").read_text(encoding="utf-8").strip()
README = (ROOT / "README.md").read_text(encoding="utf-8")

MUJOCO = ["gymnasium[mujoco]>=1.0,<2"]
# benchmarks/connect_four.py
GAMES = ["pettingzoo>=1.25"]
# The Zoo's console script, `enjoy`, `record_video`, `benchmark` and plots import these, but the Zoo does not require them
ZOO_SCRIPTS = [
    "gymnasium[classic-control]>=1.0,<2",
    "matplotlib",
    "moviepy>=1.0",
    "pandas",
    "requests",
    "scipy",
    "seaborn",
]


class DistributionWithData(Distribution):
    """
    setuptools puts data files into an editable wheel if ``has_data`` says that there are any, but has no such method itself.
    """

    def has_data(self) -> bool:  # noqa: D102
        return bool(self.data_files)


setup(
    distclass=DistributionWithData,
    name="sb3_ppo_variants",
    version=VERSION,
    description="The three algorithms of the PPO paper (clipped surrogate, fixed and adaptive KL penalty) "
    "for Stable-Baselines3 and the RL Zoo",
    long_description=README,
    long_description_content_type="text/markdown",
    license_expression="MIT",
    keywords="reinforcement-learning ppo kl-penalty stable-baselines3 rl-zoo gymnasium pytorch",
    python_requires=">=3.10",
    packages=[
        "sb3_ppo_variants",
        "sb3_ppo_variants.compiled",
        "sb3_ppo_variants.fast",
        "sb3_ppo_variants.hyperparams",
    ],
    # Top-level in the repository, as in the Zoo's own; inside the package once installed
    package_dir={"sb3_ppo_variants.hyperparams": "hyperparams"},
    package_data={
        "sb3_ppo_variants": ["py.typed", "version.txt"],
        "sb3_ppo_variants.compiled": ["*.cpp"],
        "sb3_ppo_variants.hyperparams": ["*.yml", "paper/*.yml"],
    },
    py_modules=["_sb3_ppo_variants_hook"],
    # A path relative to `{name}-{version}.data/data` in the wheel: this lands in `{name}-{version}.data/purelib`, that is in
    # site-packages, where Python reads `.pth` files at start-up, for plain and for editable installs
    data_files=[("../purelib", ["sb3_ppo_variants.pth"])],
    install_requires=[
        "stable-baselines3>=2.7,<3",
        "sb3-contrib>=2.7,<3",
        "rl-zoo3>=2.7,<3",
        "gymnasium>=1.0,<2",
        "numpy>=1.22,<3",
        "torch>=2.3,<3",
        # For learn(progress_bar=True)
        "rich",
        "tqdm",
        *ZOO_SCRIPTS,
    ],
    extras_require={
        "mujoco": MUJOCO,
        "games": GAMES,
        "tests": [
            *MUJOCO,
            *GAMES,
            "build",
            "filelock",
            "ipykernel",
            "joblib>=1.4",
            "mypy",
            "nbclient",
            "psutil",
            "pytest>=8",
            "pytest-xdist",
            "ruff",
            "setuptools>=77",
            "sybil>=9",
            "tensorboard",
            "threadpoolctl>=3.1",
            "types-psutil",
            "types-PyYAML",
            "types-tqdm",
        ],
        "benchmarks": [*MUJOCO, "filelock", "joblib>=1.4", "matplotlib", "pandas", "psutil", "scipy", "threadpoolctl>=3.1"],
        "docs": ["furo", "myst-nb>=1.4", "sphinx>=8", "sphinx-copybutton", "sphinx-design"],
        # benchmarks/atari.py
        "atari": ["ale-py>=0.11", "opencv-python-headless"],
        # benchmarks/minatar.py. Under the GPL: nothing else uses it
        "minatar": ["minatar>=1.0.15"],
        # The environments of hyperparams/paper/table4_roboschool.yml
        "bullet": ["pybullet_envs_gymnasium"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
