//go:build !unix

package gracenet

import (
	"errors"
	"os"
)

// dupFile copies a descriptor, where that is of use to a successor.
func dupFile(f *os.File) (*os.File, error) { return nil, errors.ErrUnsupported }
