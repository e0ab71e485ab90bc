//go:build !linux

package grace

import (
	"errors"
	"fmt"
	"runtime"
)

func supervise() error {
	return fmt.Errorf("grace: supervising on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
