package handoff

import (
	"bytes"
	"fmt"
	"os"
)

// sameProgram reports whether the process pid has our own command line.
func sameProgram(pid int) bool {
	theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	ours, err := os.ReadFile("/proc/self/cmdline")
	return err == nil && len(ours) > 0 && bytes.Equal(ours, theirs)
}
