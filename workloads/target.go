package workloads

import "strings"

// RequestTarget returns a path with its query as a request line may contain it. It percent-encodes all other bytes.
// Valid escapes stay unchanged; any other percent sign becomes %25.
func RequestTarget(written string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(written); i++ {
		c := written[i]
		plain := c > ' ' && c < 0x7f && !strings.ContainsRune("\"#<>\\^`{|}", rune(c))
		if c == '%' {
			plain = i+2 < len(written) && isHex(written[i+1]) && isHex(written[i+2])
		}
		if plain {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return b.String()
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
