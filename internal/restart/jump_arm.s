#include "textflag.h"

// func jump(stack uintptr, p *plan, entry uintptr)
TEXT ·jump(SB), NOSPLIT|NOFRAME, $0-12
	MOVW	stack+0(FP), R0
	MOVW	p+4(FP), R1
	MOVW	entry+8(FP), R2
	SUB	$16, R0
	MOVW	R0, R13
	MOVW	R1, 4(R13)
	MOVW	R2, 12(R13)
	CALL	·discard(SB)
	MOVW	12(R13), R2
	MOVW	R13, R0
	ADD	$16, R0
	MOVW	R0, R13
	JMP	(R2)
