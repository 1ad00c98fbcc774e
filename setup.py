"Everything about the package is read from `settings.ini`."
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

licenses = {"apache2": "Apache-2.0"}
statuses = ["Planning", "Pre-Alpha", "Alpha", "Beta", "Production/Stable",
            "Mature", "Inactive"]
pythons = [f"3.{minor}" for minor in range(10, 15)]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    license=licenses[cfg["license"]],
    python_requires=">=" + cfg["min_python"],
    classifiers=[
        f"Development Status :: {cfg['status']} - "
        + statuses[int(cfg["status"]) - 1],
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        *(f"Programming Language :: Python :: {v}" for v in pythons),
    ],
    packages=find_packages(include=["flowbook", "flowbook.*"]),
    package_data={"flowbook": ["py.typed", "weights/*", "models/*/*"]},
    include_package_data=False,  # weights/ and models/ are no packages
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={name.removesuffix("_requirements"): shlex.split(value)
                    for name, value in cfg.items()
                    if name.endswith("_requirements")},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
