#include "textflag.h"

// func jump(stack uintptr, p *plan, entry uintptr)
TEXT ·jump(SB), NOSPLIT|NOFRAME, $0-24
	MOVD	stack+0(FP), R0
	MOVD	p+8(FP), R1
	MOVD	entry+16(FP), R2
	SUB	$48, R0
	MOVD	R0, RSP
	MOVD	R1, 8(RSP)
	MOVD	R2, 24(RSP)
	CALL	·discard(SB)
	MOVD	24(RSP), R2
	MOVD	RSP, R0
	ADD	$48, R0
	MOVD	R0, RSP
	JMP	(R2)
