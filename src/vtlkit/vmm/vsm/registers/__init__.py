"""The registers of HV_REGISTER_NAME by topic: each module has a table `REGISTERS`, name to `table.Register`.

`vmm.vsm.vp_registers` puts them together and says when a processor has to stand still for an access.
docs/design/vp-registers.md says whose each register is and who may write it.
"""
