# The macros of Slicer and CTK that the extension calls, with their arguments and their checks; files are installed from
# the source tree, without the build step that copies and compiles them.
macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(_ctk "NO_INSTALL_SUBDIR;GLOBAL_TARGET" "TARGET_NAME;SOURCE_DIR;DESTINATION_DIR;INSTALL_DIR"
    "SCRIPTS;RESOURCES" ${ARGN})
  foreach(_name TARGET_NAME SCRIPTS DESTINATION_DIR INSTALL_DIR)
    if(NOT DEFINED _ctk_${_name})
      message(FATAL_ERROR "${_name} is mandatory")
    endif()
  endforeach()
  if(NOT DEFINED _ctk_SOURCE_DIR)
    set(_ctk_SOURCE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
  endif()
  foreach(_file ${_ctk_SCRIPTS} ${_ctk_RESOURCES})
    if(NOT EXISTS "${_ctk_SOURCE_DIR}/${_file}")
      message(FATAL_ERROR "${_ctk_TARGET_NAME} is given the nonexistent file '${_file}'")
    endif()
    get_filename_component(_folder "${_file}" DIRECTORY)
    install(FILES "${_ctk_SOURCE_DIR}/${_file}" DESTINATION "${_ctk_INSTALL_DIR}/${_folder}" COMPONENT RuntimeLibraries)
  endforeach()
endmacro()

macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(_module "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(_module_UNPARSED_ARGUMENTS OR NOT DEFINED _module_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: NAME is mandatory; unknown: '${_module_UNPARSED_ARGUMENTS}'")
  endif()
  ctkMacroCompilePythonScript(
    TARGET_NAME ${_module_NAME}
    SCRIPTS "${_module_SCRIPTS}"
    RESOURCES "${_module_RESOURCES}"
    DESTINATION_DIR ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
    INSTALL_DIR ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}
    NO_INSTALL_SUBDIR
    )
endmacro()

macro(SlicerMacroBuildScriptedCLI)
  cmake_parse_arguments(_cli "" "NAME" "" ${ARGN})
  foreach(_suffix py xml)
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${_cli_NAME}.${_suffix}")
      message(FATAL_ERROR "SlicerMacroBuildScriptedCLI: there is no ${_cli_NAME}.${_suffix}")
    endif()
    install(FILES "${CMAKE_CURRENT_SOURCE_DIR}/${_cli_NAME}.${_suffix}" DESTINATION "${Slicer_INSTALL_CLIMODULES_LIB_DIR}"
      COMPONENT RuntimeLibraries)
  endforeach()
endmacro()

macro(slicer_add_python_unittest)
  cmake_parse_arguments(_unittest "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${_unittest_SCRIPT}")
    message(FATAL_ERROR "no test script '${_unittest_SCRIPT}'")
  endif()
endmacro()
