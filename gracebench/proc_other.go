//go:build !linux

package main

import (
	"errors"
	"os/exec"
)

const procKnown = false

func residentMemory() int                             { return 0 }
func processGroup(int) (alive, zombies []int)         { return nil, nil }
func freeze(int) error                                { return errors.ErrUnsupported }
func thaw(int)                                        {}
func connectionsTo(string) (map[string]string, error) { return nil, errors.ErrUnsupported }
func heldBy(int, map[string]string) map[string]bool   { return nil }

func waitGone(pid int) { pollGone(pid) }

// endWithBench can only be done on Linux.
func endWithBench(*exec.Cmd) {}
