"""What PyInstaller cannot see in the code: files that are read, and modules that are loaded by their names."""  # noqa: INP001

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

#: A plug-in of pytest's.
_NOT_IN_A_PROGRAM = "tokenmeter.testing.fixtures"

datas = collect_data_files("tokenmeter") + copy_metadata("tokenmeter-sdk")
hiddenimports = collect_submodules("tokenmeter", filter=lambda name: name != _NOT_IN_A_PROGRAM, on_error="ignore")
