//go:build !unix

package gracehttp

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
)

// withMode returns an error: files of sockets have no mode here.
func withMode(fs.FileMode, func(net.ListenConfig) error) error {
	return fmt.Errorf("the mode of a unix socket: %w", errors.ErrUnsupported)
}
