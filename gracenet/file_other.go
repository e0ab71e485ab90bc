//go:build !unix

package gracenet

import (
	"errors"
	"os"

	"github.com/facebookgo/grace/internal/handoff"
)

// dupFile copies a descriptor, where that is of use to a successor.
func dupFile(f *os.File) (*os.File, error) { return nil, errors.ErrUnsupported }

// Without inherited sockets there is nothing to compare.

type fileID struct{}

func identify(path string) (fileID, error) { return fileID{}, errors.ErrUnsupported }

func onlyIPv6(*handoff.Socket) bool { return false }
