//go:build !unix

package grace

import (
	"os"
)

// restartSignal does not exist here.
var restartSignal os.Signal

// die ends the process as sig does by default.
func die(sig os.Signal) { os.Exit(2) }
