"""The quick tests: what to run first after a change. `pytest -m quick` takes less than a minute."""

from __future__ import annotations

# Beginnings of test ids, below tests/; some of every room.
QUICK = (
    "bitstream/test_chunks.py",
    "bitstream/test_container.py::test_stream_round_trip",
    "bitstream/test_range_coder.py::test_bytes_are_as_specified",
    "bitstream/test_symbols.py",
    "cli/test_cli.py::test_fallback",
    "cli/test_cli.py::test_pair",
    "cli/test_cli.py::test_wrong_usage",
    "cli/test_dicom_commands.py::test_wrap_and_unwrap",
    "codec/coders/test_slab_coders.py::test_learned[",
    "codec/coders/test_slab_coders.py::test_predictive[",
    "codec/coders/test_slab_coders.py::test_store",
    "codec/dicom/test_raw_data.py",
    "codec/evaluation/test_bd_rate.py",
    "codec/formats/test_nifti.py",
    "codec/formats/test_scans.py",
    "codec/integrations/test_nibabel_plugin.py::test_few_dimensions",
    "codec/integrations/test_pydicom_plugin.py::test_colours",
    "codec/pipeline/test_heads.py",
    "codec/pipeline/test_layers.py::test_a_bound_over",
    "codec/pipeline/test_planning.py",
    "codec/study/test_study.py::test_the_page_shows",
    "codec/study/test_study.py::test_wrong_parts",
    "codec/test_settings.py",
    "codec/test_tiling.py",
    "codec/test_vectors.py",
    "codec/training/test_cache.py::test_every_integer_type_comes_back",
    "codec/voxels/test_intensity.py",
    "codec/voxels/test_mappings.py",
    "codec/voxels/test_quality.py",
    "models/test_lapped_transform.py",
    "models/test_lossless.py::test_a_constant_slab",
    "models/test_lossless.py::test_every_shape_comes_back",
    "models/test_sign_hiding.py",
    "models/test_zoo.py::test_every_shipped_file",
    "models/test_zoo.py::test_shipped_tables",
    "native/test_library.py::test_every_function",
    "native/test_library.py::test_the_best_backend",
    "test_house.py",
    "test_installation.py::test_loading_a_model",
    "test_packaging.py",
    "test_reference_decoder.py::test_the_example",
)


def is_quick(node_id: str) -> bool:
    """Whether a test, by its id below the root, is one of the quick ones."""
    return node_id.removeprefix("tests/").startswith(QUICK)
